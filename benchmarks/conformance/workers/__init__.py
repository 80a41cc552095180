"""The programs that run in the processes of the runtimes; they import nothing else of the project."""
