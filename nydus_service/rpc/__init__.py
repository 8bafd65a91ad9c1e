"""What every gRPC client and server of ours shares: channels, and how their calls are cancelled."""
