"""What an attacker changes, and what a vector, a bag or a part is made of."""

# Name of a unit -> its plural.
UNITS = {"transition": "transitions", "trajectory": "trajectories", "source": "sources"}
