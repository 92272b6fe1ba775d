"""What a first reader can leave closed."""
