"""Command lines for Emu3's model folders."""
