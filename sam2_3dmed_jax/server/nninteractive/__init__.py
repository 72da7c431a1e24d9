"""The HTTP protocol of nnInteractive (Apache-2.0), so that its viewers work with this server without changes.

Its weights are not used: masks come from this project's models. https://github.com/MIC-DKFZ/nnInteractive
"""
