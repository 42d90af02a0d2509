"""Where jobs run: submit, stop, observe."""
