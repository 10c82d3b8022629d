"""What a device has, and what of a model fits it: sizes, memory and speed before anything is quantized.

`profile` says what a device is, `probing` measures this one, `alone` runs a file as a device would. `skeleton` makes a
GGUF file without its weights, of which `sizes`, `cache` and `memory` are told; `speed` predicts time; `budget` joins
them. Which profiles ship, and how a verdict is worded, is left to `finetune`.
"""
