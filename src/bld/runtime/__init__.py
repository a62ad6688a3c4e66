"""What a program runs on: the precision of products, and several processes as one."""
