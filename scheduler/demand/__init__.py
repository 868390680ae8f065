"""What gateways tell of what is asked of them."""
