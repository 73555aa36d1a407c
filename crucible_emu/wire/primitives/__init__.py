"""How values become bytes, without a word about messages: ``bincode`` holds the field types and their records."""
