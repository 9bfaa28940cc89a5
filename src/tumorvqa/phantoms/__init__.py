"""Made-up CT cases of which the truth is known by formula.

from tumorvqa.phantoms.draw import draw, draw_all     # phantoms whose answers are drawn first
from tumorvqa.phantoms.anatomy import Plan, Wanted, build   # a phantom with answers of one's own
from tumorvqa.phantoms.render import render           # its Scan
from tumorvqa.phantoms.truth import truth             # its Measurements, analytic
from tumorvqa.phantoms.write import write             # its files, as AbdomenAtlas lays them out
from tumorvqa.phantoms.insert import insert_lesion, room    # a lesion blended into any scan
"""
