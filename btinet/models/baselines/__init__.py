"""The methods that the paper compares with, and related work; one file each."""
