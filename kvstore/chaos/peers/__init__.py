"""Other stores, as black boxes: ``mxnet_job.py`` starts a job of MXNet, ``mxnet_worker.py`` is its worker."""
