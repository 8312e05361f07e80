"""Workers that are killed, paused and cut off: does each task end once, and as it should?"""
