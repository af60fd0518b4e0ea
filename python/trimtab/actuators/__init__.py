"""What puts weights in force: the board that balancers read, and nginx configuration."""
