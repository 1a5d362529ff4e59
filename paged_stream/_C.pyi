# The op library, made of csrc/: importing it registers the ops.
