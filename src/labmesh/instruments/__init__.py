"""Everything that touches a driver object, and nothing else does.

=============== ===========================================================================
``exposure``    which methods of a driver can be called, and whether arguments fit them
``signatures``  what one method takes: the check of a call's arguments, the text for people
``worker``      the thread that runs a driver, one call at a time, and hands results back
``failures``    what a driver raised, as an error that can cross the wire
``loading``     ``module:Class`` of a configuration file or command line → driver object
``simulated``   simulated instruments for demonstrations, tests and tutorials
=============== ===========================================================================
"""
