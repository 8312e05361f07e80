"""The example ``shop``."""

#: Which of the two other workers takes a task.
OTHER = r"worker[23]@shop"


def test_the_story_is_as_its_readme_shows_it(story, shown):
    """It prints what its README shows."""
    assert story("shop", OTHER) == shown("shop", OTHER)
