"""How hosts are reached: transports, the questions they are asked, starting and stopping on all of them."""
