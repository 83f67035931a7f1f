"""Episodes in which the voted policy of no D' within r takes a certain action: those whose tree of all that it could be made to do was followed to its end, and allows it nowhere
(docs/theorems.md, "A forbidden action in a whole episode")."""

from mucd_ray.certify.voted_return import END, Rows, Tree
from mucd_ray.mechanism.work import spend


def is_avoided(tree: Tree, rows: Rows, radius: int, action: int, horizon: int) -> bool:
    """Whether `action` (counted from 0) is possible at no node of the tree at `radius`, none of which was left unfollowed. Falls with the radius."""
    level = {0}
    for _ in range(horizon):
        spend(4 * len(level))
        following = set()
        for node in level:
            for possible in rows.possible(tree.rows[node], radius, len(level)):
                if possible == action or possible not in tree.steps[node]:
                    return False
                following.add(tree.steps[node][possible][1])
        level = following - {END}
        if not level:
            return True
    return False


def avoided_radius(tree: Tree, rows: Rows, radii: list[int], action: int, horizon: int) -> int:
    """The largest of these increasing radii at which it is avoided; -1 where not even the policy of D avoids it, or its own episode was not followed."""
    found = -1
    for radius in radii:
        if not is_avoided(tree, rows, radius, action, horizon):
            break
        found = radius
    return found
