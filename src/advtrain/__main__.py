"""`python -m advtrain` is the same as `advtrain`."""

from advtrain.main import main

main()
