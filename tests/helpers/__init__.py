"""What tests of several rooms share: processes, run directories, images."""
