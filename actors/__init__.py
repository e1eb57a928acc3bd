"""One resource each: plain classes and functions that workflows turn into Ray actors."""
