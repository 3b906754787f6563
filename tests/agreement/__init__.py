"""The same scripts of calls on the kernel module and on the planner's model of it."""
