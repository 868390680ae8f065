"""The mesh's own core under a virtual clock: thousands of workers, seven regions, hours of demand in minutes.

What decides is the code that decides in production (`placement`); what is made up is what it decides about: requests, how long
they take, machines that come and go, regions that are cut off. No I/O, no sleeping; the same seed gives the same run.
"""
