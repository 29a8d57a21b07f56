"""The web page: a static folder with which a browser runs a model, encoder and decoder, on the user's own machine.

``page/`` is copied to the site as it is; ``site`` assembles, ``runtime`` fetches ONNX Runtime Web, ``serve`` serves.
"""
