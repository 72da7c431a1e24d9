"""A session with the server by nnInteractive's own client, as a program, so that any version of it can be used.

`python drive_nninteractive.py URL IMAGE.npy OUT.npz`: `OUT.npz` has the client's mask after each interaction, and its
version as `client`.
"""

import sys
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
from nnInteractive.inference.remote import remote_session
from nnInteractive.inference.remote.remote_session import nnInteractiveRemoteInferenceSession

client_package = distribution("nninteractive-client")
module = Path("nnInteractive", "inference", "remote", "remote_session.py")
assert Path(client_package.locate_file(module)) == Path(remote_session.__file__), "modules of two versions are mixed"

url, image, out = sys.argv[1:]
voxels = np.load(image)
steps = {}
with nnInteractiveRemoteInferenceSession(url) as client:
    mask = np.zeros(voxels.shape, np.uint8)

    def note(name: str) -> None:
        steps[name] = mask.copy()

    client.set_image(voxels[None], {"spacing": (3.0, 0.7, 0.8)})
    client.set_target_buffer(mask)
    client.reset_interactions()
    client.add_point_interaction((5, 9, 10), include_interaction=True)
    note("point")
    client.add_point_interaction((5, 18, 20), include_interaction=False)
    note("outside")
    assert client.undo()
    note("undo")
    client.add_bbox_interaction([[7, 8], [4, 12], [6, 15]], include_interaction=True)
    note("box")
    stroke = np.zeros((1, 3, 6), np.uint8)
    stroke[0, 1] = 1
    client.add_scribble_interaction(stroke, True, interaction_bbox=[[9, 10], [8, 11], [6, 12]])
    note("scribble")
    lasso = np.zeros(voxels.shape, np.uint8)
    lasso[11, 4:9, 5:12] = 1
    client.add_lasso_interaction(lasso, True)
    note("lasso")
    while client.undo():
        pass
    note("all undone")
    client.add_point_interaction((5, 9, 10), include_interaction=True)
    note("point again")
    client.reset_interactions()
    seed = np.zeros(voxels.shape, np.uint8)
    seed[4:8, 6:14, 6:16] = 1
    client.add_initial_seg_interaction(seed)
    note("seed")
    client.add_point_interaction((6, 18, 20), include_interaction=True)
    note("corrected seed")
np.savez(out, client=client_package.version, **steps)
