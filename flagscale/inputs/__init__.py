"""The files a job reads, checked by the standard library alone: before a launch, and again by each rank."""
