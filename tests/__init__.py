"""The tests of psycopg2_pool2, in folders by kind."""
