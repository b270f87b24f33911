"""Where does looking matter? Scores of layers, from sweeps of one-row plans and from gradients."""
