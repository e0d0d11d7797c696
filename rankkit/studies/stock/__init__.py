"""Our models as models of a stock architecture, which other tools load."""
