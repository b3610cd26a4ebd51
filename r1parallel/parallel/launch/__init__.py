"""Starting the processes of a job, what each is doing, and which failed first."""
