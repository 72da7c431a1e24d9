"""The HTTP protocol of ITK-SNAP's deep learning extensions, so that ITK-SNAP works with this server without changes.

The server that ITK-SNAP expects is `itksnap-dls`, https://github.com/pyushkevich/itksnap-dls. Left out are its
2D models, which segment one slice of the display.
"""
