"""What a bundle carries: the client, as it is, and the texts beside it, as templates."""
