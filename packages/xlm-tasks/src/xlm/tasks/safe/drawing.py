"""A molecule that is being written, for the viewer (``xlm.renderers``)."""

import re
from collections.abc import Collection, Sequence

from xlm.tasks.safe.chemistry import load, safe_to_smiles

WIDTH, HEIGHT = 320, 220


def draw(prompt: str, tokens: Sequence[str], edited: Collection[int]) -> str | None:
    """Draw the molecule of a SAFE string, as rdkit does.

    Args:
        prompt: Given fragments.
        tokens: Tokens so far.
        edited: Positions that changed; a molecule shows no single token.

    Returns:
        An SVG element of one size, empty as long as the string is no molecule.
    """
    text = "".join(tokens)
    smiles = None if "[" + "MASK" in text else safe_to_smiles(text)
    chem, rd_base, drawing = load("rdkit.Chem"), load("rdkit.rdBase"), load("rdkit.Chem.Draw.rdMolDraw2D")
    with rd_base.BlockLogs():
        molecule = None if smiles is None else chem.MolFromSmiles(smiles)
    if molecule is None:
        return (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">'
            f'<text x="{WIDTH // 2}" y="{HEIGHT // 2}" text-anchor="middle" font-size="14">'
            "no molecule yet</text>"
            "</svg>"
        )
    canvas = drawing.MolDraw2DSVG(WIDTH, HEIGHT)
    canvas.DrawMolecule(molecule)
    canvas.FinishDrawing()
    return re.sub(r"^.*?(?=<svg)", "", canvas.GetDrawingText(), flags=re.DOTALL)
