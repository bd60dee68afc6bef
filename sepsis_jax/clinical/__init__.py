"""The clinical vocabulary: features, actions, SOFA, reward and guideline rules, as pure array functions."""
