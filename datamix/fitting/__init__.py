"""From weights and losses of runs to a recommendation: laws, the optimum of a law, verdicts, mixtures to run."""
