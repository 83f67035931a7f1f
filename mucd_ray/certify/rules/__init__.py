"""Vote rules: how votes of all policies of a partition become one action, and how many policies must change before each action can become it."""
