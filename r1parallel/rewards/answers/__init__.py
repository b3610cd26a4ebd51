"""Finding answers in text and comparing them."""
