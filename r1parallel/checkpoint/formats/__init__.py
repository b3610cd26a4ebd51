"""What lies in a checkpoint file: headers, dtypes, manifests, and the files beside the weights."""
