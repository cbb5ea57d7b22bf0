"""How fast this machine is: `dped-live bench`."""
