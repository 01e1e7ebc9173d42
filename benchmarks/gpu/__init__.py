"""What only a GPU can show, by value: `make gpu`."""
