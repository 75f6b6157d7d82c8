"""What every method shares: tasks and states, the engines that run them, order statistics and errors."""
