"""What a student is compared with, and by which distance."""
