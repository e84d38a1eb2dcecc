"""How it is said: data <- text <- figure <- html, one way."""
