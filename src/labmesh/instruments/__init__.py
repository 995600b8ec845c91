"""Everything that touches a driver object, and nothing else does.

=============== ===========================================================================
``exposure``    which methods and values of a driver can be reached, and with which arguments
``members``     what a class has, read without asking a descriptor or the driver
``methods``     one method as the table has it
``values``      one value (property) as the table has it
``pymeasure_like``, ``qcodes_like``
                what the values of such instruments tell about themselves
``marks``       ``@expose`` and ``@hidden``
``limits``      units, ranges and choices, from annotations
``signatures``  what one method takes: the check of a call's arguments, the text for people
``handover``    how a driver gives datasets to the relay that runs it
``cooperation`` how a driver in the middle of a call learns that it was cancelled
``worker``      the thread that runs a driver, one call at a time, and what it does next
``thread_runner``, ``jobs``, ``job_queue``, ``source``, ``delivery``
                how that thread runs one job, what jobs there are, which one is next, where they
                come from and how their outcomes get to the event loop
``failures``    what a driver raised, as an error that can cross the wire
``loading``     ``module:Class`` of a configuration file or command line → driver object
``simulated``   simulated instruments for demonstrations, tests and tutorials
=============== ===========================================================================
"""
