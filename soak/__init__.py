"""Many writers, a server that is killed, connections that are cut: is anything lost or doubled?"""
