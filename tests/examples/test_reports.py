"""The example ``reports``."""


def test_the_story_is_as_its_readme_shows_it(story, shown):
    """It prints what its README shows."""
    assert story("reports") == shown("reports")
