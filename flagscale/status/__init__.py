"""What a person or a service is shown of a job."""
