"""How it is told: data <- text <- figure <- html, one way."""
