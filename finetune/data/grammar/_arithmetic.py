"""Small expressions over a row's slots: `price * count`, `"more" if a > b else "fewer"`.

An expression is parsed as Python's, and only what is listed here is computed: whole numbers, texts, truth values,
names, `+ - * // %`, comparisons, `and or not` and `x if y else z`. There are no calls, attributes or powers, nothing is
ever run as Python, and arithmetic is of whole numbers only, so that an expression can neither reach out nor grow large.
"""

import ast
import operator
from collections.abc import Callable, Mapping

from finetune.data.grammar._words import Scalar

Lookup = Callable[[str], Scalar]

_ARITHMETIC: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_ORDER: Mapping[type[ast.cmpop], Callable[[int, int], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_ALLOWED = (
    *(ast.Expression, ast.Constant, ast.Name, ast.Load, ast.BinOp, ast.UnaryOp, ast.USub, ast.Not),
    *(ast.Compare, ast.Eq, ast.NotEq, ast.BoolOp, ast.And, ast.Or, ast.IfExp),
    *_ARITHMETIC,
    *_ORDER,
)


def parsed(expression: str) -> ast.expr:
    """The expression, ready to be evaluated. Raises ValueError, with what is not allowed, for any other text."""
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{expression!r} is no expression: {getattr(error, 'msg', error)}") from None
    for node in ast.walk(tree):
        if not isinstance(node, _ALLOWED):
            raise ValueError(
                f"{expression!r} holds {type(node).__name__}; allowed are whole numbers, texts, slots, + - * // %, "
                "comparisons, and, or, not, and 'x if y else z'"
            )
        if isinstance(node, ast.Constant) and type(node.value) not in (int, str, bool):
            raise ValueError(f"{expression!r} holds {node.value!r}; expected whole numbers, texts and truth values")
    return tree.body


def names_in(expression: str) -> tuple[str, ...]:
    """The slots that an expression names, each once. Raises ValueError as `parsed` does."""
    names = [node.id for node in ast.walk(parsed(expression)) if isinstance(node, ast.Name)]
    return tuple(dict.fromkeys(names))


def evaluate(expression: str, lookup: Lookup) -> Scalar:
    """The expression's value where `lookup` gives the slots' values; branches that are not taken are not looked at.

    Raises ValueError for an expression that is not allowed, arithmetic of texts, and a division by zero.
    """
    try:
        return _value(parsed(expression), lookup)
    except (TypeError, ZeroDivisionError) as error:
        raise ValueError(f"{expression!r} cannot be computed: {error}") from None


def _value(node: ast.expr, lookup: Lookup) -> Scalar:
    match node:
        case ast.Constant(value=bool() | int() | str() as constant):
            return constant
        case ast.Name(id=name):
            return lookup(name)
        case ast.BinOp(left=left, op=sign, right=right):
            return _ARITHMETIC[type(sign)](_number(left, lookup), _number(right, lookup))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _value(operand, lookup)
        case ast.UnaryOp(operand=operand):
            return -_number(operand, lookup)
        case ast.IfExp(test=test, body=body, orelse=otherwise):
            return _value(body if _value(test, lookup) else otherwise, lookup)
        case ast.BoolOp(op=ast.And(), values=values):
            return all(_value(value, lookup) for value in values)
        case ast.BoolOp(values=values):
            return any(_value(value, lookup) for value in values)
        case ast.Compare(left=left, ops=signs, comparators=others):
            pairs = zip([left, *others[:-1]], signs, others, strict=True)
            return all(_compared(first, sign, second, lookup) for first, sign, second in pairs)
    raise ValueError(f"{ast.unparse(node)!r} is not allowed")


def _compared(left: ast.expr, sign: ast.cmpop, right: ast.expr, lookup: Lookup) -> bool:
    if isinstance(sign, ast.Eq | ast.NotEq):
        return (_value(left, lookup) == _value(right, lookup)) is isinstance(sign, ast.Eq)
    return _ORDER[type(sign)](_number(left, lookup), _number(right, lookup))


def _number(node: ast.expr, lookup: Lookup) -> int:
    value = _value(node, lookup)
    if isinstance(value, str):
        raise TypeError(f"{value!r} is no number")
    return value
