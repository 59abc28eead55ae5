"""The memory of every rank of a job: static, live and transient terms, and what each layer keeps."""
