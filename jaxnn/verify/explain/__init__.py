"""Why is it wrong? By breaking the backward pass, by changing the forward, by algebra on the leaves."""
