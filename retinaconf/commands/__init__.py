"""One file a command: its options with their help, what it reads, calls and prints."""
